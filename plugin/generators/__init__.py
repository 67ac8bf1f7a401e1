"""The generators. `base` holds their interface, `factory` makes one from its name, and each other module holds one."""
