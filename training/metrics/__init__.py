"""How good generators and edits are: the measures, and the small networks that some of them need."""
