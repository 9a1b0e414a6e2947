"""The figures that the README quotes, each reproduced by one command."""
