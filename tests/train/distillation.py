"""The paper's distillation loss, written with loops."""


def stella_in_float64(torch, texts, teacher, dims):
    """The terms for all texts (N, E) by definition, with a loop over all pairs of pairs."""
    student, teacher = torch.cat(texts), torch.nn.functional.normalize(teacher, dim=-1)
    cosine = (1 - torch.cosine_similarity(student, teacher)).mean()
    expected, n = teacher @ teacher.T, len(student)
    pairs = [(i, j) for i in range(n) for j in range(i + 1, n)]
    squares, hinges = [], []
    for dim in dims:
        unit = torch.nn.functional.normalize(student[:, :dim], dim=-1)
        found = unit @ unit.T
        squares.append(((found - expected) ** 2).mean())
        twos = [(one, two) for k, one in enumerate(pairs) for two in pairs[k + 1 :]]
        first, second = (torch.stack([found[pair[which]] for pair in twos]) for which in (0, 1))
        first_is_nearer = torch.tensor([bool(expected[one] > expected[two]) for one, two in twos])
        apart = torch.where(first_is_nearer, second - first, first - second)
        hinges.append(torch.clamp(apart + 0.015, min=0).mean())
    return 10 * cosine + 200 * sum(squares) / len(dims) + 20 * sum(hinges) / len(dims)
