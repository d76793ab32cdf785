"""External policies: programs of other libraries, in environments of their own, as lines of a sweep."""
