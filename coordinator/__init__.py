"""The coordinator: holds what people want, schedules it, stores it, and tells the agents."""
