"""Recipes that run as they are: `flexswitch run recipes/NAME.yaml`."""
