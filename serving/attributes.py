"""Names of spans and of their attributes: the table of docs/tracing.md.

They are those of OpenTelemetry's semantic conventions for generative AI where there is one, else they begin with
`dalle.`. FastAPI itself names those of HTTP.
"""

__all__ = [
    "CANDIDATES",
    "CHECK",
    "CHOOSE",
    "CODES",
    "DECODE",
    "DRAW",
    "ENCODE",
    "ERROR_TYPE",
    "ESTIMATE",
    "FINGERPRINT",
    "FINISH_REASONS",
    "GENERATE",
    "INPUT_TOKENS",
    "JOB_ID",
    "MODEL",
    "NUM_PICTURES",
    "OPERATION",
    "OUTPUT_TOKENS",
    "OUTPUT_TYPE",
    "PICTURE",
    "POSITION",
    "PREFILL",
    "PREVIEW",
    "PROVIDER",
    "REQUEST_ID",
    "REQUEST_MODEL",
    "SEED",
    "STEPS",
    "STREAM",
    "TEMPERATURE",
    "TOP_K",
    "TOP_P",
    "TRANSLATE",
    "WAIT",
]

GENERATE = "generate_content"
"""Span of a job in the ingress, from its sending to its last picture; the model's id follows the name."""
DRAW = "draw"
"""Span of a job in the process of the model; the model's id follows the name."""
TRANSLATE = "translate"
WAIT = "wait"
PREFILL = "prefill"
STEPS = "steps"
DECODE = "decode"
CHOOSE = "choose"
CHECK = "check"
ENCODE = "encode"

ERROR_TYPE = "error.type"

OPERATION = "gen_ai.operation.name"
PROVIDER = "gen_ai.provider.name"
OUTPUT_TYPE = "gen_ai.output.type"
REQUEST_MODEL = "gen_ai.request.model"
NUM_PICTURES = "gen_ai.request.choice.count"
SEED = "gen_ai.request.seed"
STREAM = "gen_ai.request.stream"
TEMPERATURE = "gen_ai.request.temperature"
TOP_K = "gen_ai.request.top_k"
TOP_P = "gen_ai.request.top_p"
MODEL = "gen_ai.response.model"
JOB_ID = "gen_ai.response.id"
FINISH_REASONS = "gen_ai.response.finish_reasons"
INPUT_TOKENS = "gen_ai.usage.input_tokens"
OUTPUT_TOKENS = "gen_ai.usage.output_tokens"
FINGERPRINT = "openai.response.system_fingerprint"

REQUEST_ID = "dalle.request.id"
POSITION = "dalle.queue.position"
ESTIMATE = "dalle.queue.estimate"
PICTURE = "dalle.picture.index"
PREVIEW = "dalle.preview.number"
CODES = "dalle.codes"
CANDIDATES = "dalle.candidates"
