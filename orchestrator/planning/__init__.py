"""What a sweep will do and cost, before it runs."""
