"""Parts of the verb `reproduce`: targets, the drawn look-alike of VOC, and the plan."""
