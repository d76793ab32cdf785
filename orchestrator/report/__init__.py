"""The curve and its forms: summary, plots, HTML."""
