"""The sweep file: schema, loading, arms."""
