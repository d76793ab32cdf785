"""What the shipped external policies share: their side of training and of serving."""
