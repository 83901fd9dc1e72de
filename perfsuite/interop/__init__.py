"""Results of other tools in, ours out in their forms. Pure: text and values in, values and text out."""
