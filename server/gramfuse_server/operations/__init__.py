"""What operators see, for the API and the dashboard alike."""
