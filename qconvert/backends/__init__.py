"""Where networks run: what each backend needs, whether it works here, and how it is opened."""
