"""What the judges say of every candidate, and a quality report of the policy that wrote them."""
