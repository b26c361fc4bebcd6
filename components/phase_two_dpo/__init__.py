"""Phase Two: one steer vector per environment, the policy frozen (METHOD section 4, step 5)."""
