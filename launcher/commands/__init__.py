"""What a person calls beside training, a file each."""
