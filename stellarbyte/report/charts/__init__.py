"""The charts of a report: each function gives the charts of one subject, to be drawn as SVG or PNG."""
