def render(title, summaries, shown, study):
    return "todo"
