"""The demo observatory: a small survey to try ppd on."""
