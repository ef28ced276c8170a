"""What the stored pictures are worth: metrics, the networks behind them, references."""
