"""What is learnt: online learners, evaluation and drift detection."""
