"""The operator table: a few families of rules that say what each operator does to channel labels."""
