"""What a setting is made of: its type and range, the words for them, one line of documentation."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    TypeAdapter,
    ValidationError,
    WithJsonSchema,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import CoreSchema, PydanticUndefined

from launcher.config.tree import UNSTATED
from launcher.core.durations import parse_duration
from launcher.core.ranges import parse_range

CONFIG = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)


@dataclass(frozen=True)
class Words:
    """Says what a type may be, where that does not follow from the type itself."""

    text: str

    def __get_pydantic_json_schema__(self, core: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """Hand the words on, for `in_words`."""
        return {**handler(core), "words": self.text}


def _off(value: bool) -> bool:
    if value:
        raise ValueError("true says too little")
    return value


Off = Annotated[bool, AfterValidator(_off), WithJsonSchema({"const": False})]  # of a Literal[False] 0 is one as well
LARGEST = 2**63 - 1  # that torch and JSON's readers take
Count = Annotated[int, Field(ge=1, le=LARGEST)]
CountOrZero = Annotated[int, Field(ge=0, le=LARGEST)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Text = Annotated[str, Field(min_length=1)]
Mode = Literal["min", "max"]
Auto = Literal["auto"]
Every = Count | Literal["epoch"] | None
Duration = Annotated[
    Positive | Text,
    AfterValidator(lambda value: parse_duration(value) and value),
    Words('seconds above 0, or a text such as "90m", "12h" or "2d"'),
]
Range = Annotated[
    Text,
    AfterValidator(lambda value: parse_range(value) and value),
    Words("a range such as 1-4"),
]
# What W&B takes.
ProjectName = Annotated[
    str,
    Field(min_length=1, max_length=128, pattern=r"^[^/\\#?%:]*$"),
    Words(r"a text of at most 128 characters, without any of / \ # ? % :"),
]
RunId = Annotated[
    str,
    Field(min_length=1, max_length=128, pattern=r"^[^:;,#?/' ]*$"),
    Words("a text of at most 128 characters, without any of : ; , # ? / ' or blanks"),
]
Tags = Annotated[
    list[Annotated[str, Field(min_length=1, max_length=64)]], Words("a list of texts of at most 64 characters")
]
ParameterPatterns = Annotated[list[Text], Words("a list of patterns of parameter names, such as [layers.0.*]")]


class ParamGroup(BaseModel):
    """Parameters with a learning rate or weight decay of their own."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    match: Text | Annotated[list[Text], Field(min_length=1)]
    lr: NotNegative | None = None
    weight_decay: NotNegative | None = None

    @model_validator(mode="after")
    def _says_something(self) -> "ParamGroup":
        if self.lr is None and self.weight_decay is None:
            raise ValueError("neither lr nor weight_decay")
        return self


ParamGroups = Annotated[
    list[ParamGroup],
    Words('a list of groups, each with match and lr or weight_decay: [{match: "head.*", lr: 0.01, weight_decay: 0.0}]'),
]


class Hook(BaseModel):
    """A class of a person's own, by its `_target_`, and the arguments of its constructor."""

    model_config = ConfigDict(strict=True, extra="allow")

    target: Text = Field(alias="_target_")


HookList = Annotated[
    list[Hook], Words("a list of classes of your own with their arguments: [{_target_: my.module.Hook, every: 10}]")
]


class NamedMetric(BaseModel):
    """A metric of torchmetrics by its `name`, or of a person's own by its `_target_`, and what its constructor gets."""

    model_config = ConfigDict(strict=True, extra="allow")

    name: Text | None = None
    target: Text | None = Field(None, alias="_target_")

    @model_validator(mode="after")
    def _is_one(self) -> "NamedMetric":
        if (self.name is None) == (self.target is None):
            raise ValueError("either name or _target_")
        return self


MetricList = Annotated[
    list[Text | NamedMetric],
    Words(
        "a list of names of torchmetrics, or of metrics with their arguments: [AUROC, {name: FBetaScore, beta: 0.5}, "
        "{_target_: my.module.Kappa}]"
    ),
]


def setting(about: str, absent: Any = PydanticUndefined, *, may_differ: bool = False, only: str | None = None) -> Any:
    """A setting.

    Args:
        about: One line of documentation.
        absent: What a config means that was made by an earlier launcher, before there was this setting. Without it
            every config has the setting. This is no default: those are in conf/.
        may_differ: Whether another value may be given on resume: it does not change the result, or it is meant to.
        only: The strategy that has it, where another has not.
    """
    return Field(absent, description=about, json_schema_extra={"may_differ": may_differ, "only": only})


def argument(about: str, absent: Any = UNSTATED, *, may_differ: bool = False) -> Any:
    """A setting of a component, whose class may have no such argument; see `setting`."""
    return setting(about, absent, may_differ=may_differ)


class Section(BaseModel):
    """Settings with a name in common.

    Attributes:
        main: The one that is meant where somebody gives a value to all; empty where there is none.
        instead: A sentence on how the section is switched off, or what stands in its place.
    """

    model_config = CONFIG | ConfigDict(json_schema_extra={"additionalProperties": False})
    main: ClassVar[str] = ""
    instead: ClassVar[str] = ""


class Component(Section):
    """Settings of a class, by its `_target_`: those that the launcher knows; the class takes others."""

    model_config = ConfigDict(json_schema_extra={"additionalProperties": True})


@dataclass(frozen=True)
class Setting:
    """A setting, or a section of them, as the field of a model."""

    field: FieldInfo

    @cached_property
    def section(self) -> type[Section] | None:
        """The section that this is; None for a setting."""
        kind = self.field.annotation
        return kind if isinstance(kind, type) and issubclass(kind, Section) else None

    @property
    def about(self) -> str:
        """One line of documentation."""
        return self.field.description or ""

    @property
    def absent(self) -> Any:
        """What a config means that does not have it; UNSTATED where each has it, or where its class says so."""
        return UNSTATED if self.required else self.field.default

    @property
    def required(self) -> bool:
        """Whether no run ever was without it."""
        return self.field.is_required()

    def marked(self, mark: Literal["may_differ", "only"]) -> Any:
        """Whether it may differ on resume (`may_differ`); the strategy that has it (`only`)."""
        extra = self.field.json_schema_extra
        return extra[mark] if isinstance(extra, dict) else None

    @cached_property
    def _adapter(self) -> TypeAdapter[Any]:
        kind: Any = self.field.annotation
        for note in self.field.metadata:
            kind = Annotated[kind, note]
        return TypeAdapter(kind, config=None if self.section else CONFIG)

    def fits(self, value: Any) -> bool:
        """Whether a value may be."""
        try:
            self._adapter.validate_python(value)
        except ValidationError:
            return False
        return True

    @property
    def words(self) -> str:
        """What may be, as a part of a sentence."""
        return self.section.instead if self.section else in_words(self._adapter.json_schema())


def in_words(schema: Mapping[str, Any]) -> str:
    """What a JSON Schema allows, as a part of a sentence: a number of at least 0, or null."""
    if "words" in schema:
        return str(schema["words"])
    if "anyOf" in schema:
        return ", or ".join(in_words(one) for one in schema["anyOf"])
    if "const" in schema or "enum" in schema:
        values = [str(value).lower() if isinstance(value, bool) else str(value) for value in
                  schema.get("enum", [schema.get("const")])]  # fmt: skip
        return " or ".join(part for part in (", ".join(values[:-1]), values[-1]) if part)
    kind = schema.get("type")
    if kind == "integer":
        return f"a whole number of at least {schema['minimum']}"
    if kind == "number":
        return _range_in_words(schema)
    if kind == "array":
        return f"a list, each of it {in_words(schema['items'])}"
    return {"boolean": "true or false", "string": "a text", "null": "null", "object": "settings"}.get(
        str(kind), "anything"
    )


def _range_in_words(schema: Mapping[str, Any]) -> str:
    low, above = schema.get("minimum"), schema.get("exclusiveMinimum")
    high, below = schema.get("maximum"), schema.get("exclusiveMaximum")
    if above is not None:
        return (
            f"a number above {above:g} and at most {high:g}" if high is not None else f"a number greater than {above:g}"
        )
    if below is not None:
        return f"a number from {low:g} to below {below:g}"
    return f"a number from {low:g} to {high:g}" if high is not None else f"a number of at least {low:g}"


def flat(model: type[Section], prefix: str = "") -> Iterator[tuple[str, Setting]]:
    """Every section and setting of a model by its dotted name, a section before what is in it."""
    for name, field in model.model_fields.items():
        found = Setting(field)
        yield f"{prefix}{name}", found
        if found.section:
            yield from flat(found.section, f"{prefix}{name}.")
