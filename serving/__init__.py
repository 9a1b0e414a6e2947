"""How a prediction is made and reached: the scorer, the gateway and the page."""
