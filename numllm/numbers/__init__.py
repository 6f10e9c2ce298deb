"""Numbers in Chinese financial text: where they stand, what they are worth, and whether they mean something."""

from .finding import find_numbers, may_vary
from .number import Number, variables
from .numerals import chinese_to_int, decimal_string, int_to_chinese

__all__ = ["Number", "chinese_to_int", "decimal_string", "find_numbers", "int_to_chinese", "may_vary", "variables"]
