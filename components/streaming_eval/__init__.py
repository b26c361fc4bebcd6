"""Arms on streams and questions they have never seen, the gate's verdict, and the report (METHOD section 5)."""
