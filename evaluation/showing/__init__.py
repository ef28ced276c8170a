"""Tables as people look at them: charts, sheets and the page."""
