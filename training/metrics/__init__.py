"""How good generators, edits and priors are, and the training of the judges that the measures need."""
