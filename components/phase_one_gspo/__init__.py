"""Phase One: GSPO teaches the base policy how to memorize (METHOD section 3)."""
