"""Signatures in the reference name JAX's array type as everyone writes it."""


def shorten(app, what, name, obj, options, arguments, result):
    """Return the signature with `Array` for JAX's class of arrays."""
    return tuple(
        part and part.replace("jaxlib._jax.Array", "Array")
        for part in (arguments, result)
    )


def setup(app):
    """Called by Sphinx."""
    app.connect("autodoc-process-signature", shorten)
    return {"parallel_read_safe": True}
