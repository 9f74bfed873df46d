"""Claims of Genewein et al. (2025), Appendix E, about exact mathematics: tests/theory/test_claims.py computes them."""

from bayesprompt.lab.judging import exact_claims

CLAIMS = exact_claims(
    {
        "E1": "With a Beta prior the posterior variance vanishes for every sequence.",
        "E2": "A log-concave prior keeps one peak: no prompt makes a mixture of two coins.",
        "E3": "A prior of two points, or with a gap, keeps two peaks at k = n/2.",
        "E4": "In a mixture over a language's programs, a program is a prompt that gives the prior it names exactly.",
        "E5": "In a product mixture, prompts of growing segments approach the target up to a horizon.",
        "E6": "In a small stand-in for a universal mixture, both kinds of prompts work.",
        "E7": "On average prompts narrow a belief; atypical prompts widen it.",
        "E9": "For one coin in the support, long enough hard prompts become optimal (Eq. 8-9).",
    }
)
