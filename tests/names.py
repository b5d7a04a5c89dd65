"""Names of classes that people type, and that files, tables, pages or charts could mistake."""

AWKWARD = (
    *("car/truck", "a\\b", "c:d", '"quoted"', "it's", "<b>", "[red]x[/]", "[/x]", "$x$", "a|b"),
    *("..", "con", "سيارة", "\U0001f600", "ab" * 150, "hot  dog", "red, blue", "100%", "`code`"),
    *(
        ".hidden",
        "ends.",
        "{{ name }}",
        "*star*",
        "_line_",
        "Car",
        "car",
        "ca\u0301r",
        "Ärger" * 60,
    ),
)
