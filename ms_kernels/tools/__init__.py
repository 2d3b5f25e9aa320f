"""What runs from the command line: demo, pictures, tuner, and what a step costs."""
