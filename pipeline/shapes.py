"""Array types with dtypes and shapes, for annotations: jaxtyping's where it is installed, placeholders elsewhere.

jaxtyping is a dependency of the tests, which check shapes at run time, and of the type checker.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Float16, Float32, Float64, Int64, Integer, Shaped, UInt8
else:
    try:
        from jaxtyping import Bool, Float, Float16, Float32, Float64, Int64, Integer, Shaped, UInt8
    except ImportError:

        class _Placeholder:
            """Accepts any dtype and shape: the product runs without jaxtyping."""

            def __class_getitem__(cls, item: Any) -> Any:
                return Any

        Bool = Float = Float16 = Float32 = Float64 = Int64 = Integer = Shaped = UInt8 = _Placeholder

__all__ = ["Bool", "Float", "Float16", "Float32", "Float64", "Int64", "Integer", "Shaped", "UInt8"]
