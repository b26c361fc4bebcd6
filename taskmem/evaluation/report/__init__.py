"""report.html: one self-contained page on what a run learned, and what it cost."""
