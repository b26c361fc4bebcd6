"""Phase One: GSPO teaches the policy how to memorize (METHOD section 3)."""
