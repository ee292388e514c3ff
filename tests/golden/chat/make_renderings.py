"""Writes renderings.json: chat templates, conversations and what Jinja2 makes of them.

    python3 tests/golden/chat/make_renderings.py ../shared/data > tests/golden/chat/renderings.json

Needs jinja2 (made with 3.1.6). Templates of the shared test data are named, not copied; the short
ones below are those of other models in wide use, or small changes of them. A rendering is null
where the conversation is refused: by the template, or by quire's Llama-2 format, which takes a
system message in the first place only (the templates drop or misplace a later one).
"""
import json
import sys
from pathlib import Path

from jinja2.exceptions import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

CHATML = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + "
    "'<|im_end|>' + '\\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
DEFAULT_FALSE = (
    "{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}"
)
LLAMA3_LOOP = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}"
    "{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'"
    "+ message['content'] | trim + '<|eot_id|>' %}"
    "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}"
    "{{ content }}{% endfor %}"
)
LLAMA3_OPEN = "{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}"
LLAMA2_HEAD = (
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
    "{% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}"
    "{% set system_message = false %}{% endif %}{% for message in loop_messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}"
    "{% endif %}{% if loop.index0 == 0 and system_message != false %}"
    "{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}"
    "{% else %}{% set content = message['content'] %}{% endif %}"
    "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
)
LLAMA2_SYSTEM = (
    "{% elif message['role'] == 'system' %}"
    "{{ '<<SYS>>\\n' + content.strip() + '\\n<</SYS>>\\n\\n' }}"
)
LLAMA2_TAIL = (
    "{% elif message['role'] == 'assistant' %}"
    "{{ ' '  + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)

# name: (format or null where quire must refuse, template)
INLINE = {
    "ChatML": ("chatml", CHATML),
    "ChatML, spelled otherwise": (
        "chatml",
        '{#- a comment -#}\n{%- for message in messages -%}\n  {{- "<|im_start|>" + message.role'
        " + '\\n' + message.content + '<|im_end|>\n' -}}\n{%- endfor -%}\n"
        '{%- if add_generation_prompt -%}{{- "<|im_start|>" + "assistant\\n" -}}{%- endif -%}',
    ),
    "ChatML, no generation prompt by default": ("chatml", DEFAULT_FALSE + CHATML),
    "ChatML after BOS (Hermes on Llama-3)": ("chatml", "{{bos_token}}" + CHATML),
    "ChatML with a default system prompt (Qwen2)": (
        "chatml",
        "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
        "{{ '<|im_start|>system\\nYou are a careful\\nassistant.<|im_end|>\\n' }}{% endif %}"
        + CHATML[len("{% for message in messages %}"):],
    ),
    "Llama-3, always open": ("llama3", LLAMA3_LOOP + LLAMA3_OPEN),
    "Llama-3": ("llama3", LLAMA3_LOOP + "{% if add_generation_prompt %}" + LLAMA3_OPEN + "{% endif %}"),
    "Llama-2": ("llama2", LLAMA2_HEAD + LLAMA2_TAIL),
    "Llama-2 with a branch for system": ("llama2", LLAMA2_HEAD + LLAMA2_SYSTEM + LLAMA2_TAIL),
    "Llama-2 with filters": ("llama2", (LLAMA2_HEAD + LLAMA2_TAIL).replace(".strip()", " | trim")),
    "Phi-3-small": (
        "phi3",
        "{{ bos_token }}{% for message in messages %}{{'<|' + message['role'] + '|>' + '\\n'"
        " + message['content'] + '<|end|>\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% else %}{{ eos_token }}{% endif %}",
    ),
    # Each differs from a known template in one detail that changes the prompt.
    "ChatML without the last newline": (None, CHATML.replace(" + '\\n'}}", "}}")),
    "ChatML that trims": (None, CHATML.replace("message['content']", "message['content'] | trim")),
    "ChatML without system messages": (
        None,
        CHATML.replace("messages %}", "messages if message['role'] != 'system' %}"),
    ),
    "ChatML with a thought opened": (None, CHATML.replace("assistant\\n", "assistant\\n<think>\\n")),
    "ChatML with text in front": (None, "Note: " + CHATML),
    "ChatML as text": (
        None,
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}",
    ),
    "Mistral": (
        None,
        "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}"
        "{{ '[INST] ' + message['content'] + ' [/INST]' }}{% else %}"
        "{{ message['content'] + eos_token}}{% endif %}{% endfor %}",
    ),
    "Llama-3 that does not trim": (None, (LLAMA3_LOOP + LLAMA3_OPEN).replace(" | trim", "")),
    "nothing": (None, ""),
}

SHARED = {
    "tokenizers/qwen3": "chatml",
    "tokenizers/qwen2.5-config-only": "chatml",
    "tokenizers/smollm2": "chatml",
    "tokenizers/phi-3-mini": "phi3",
    "chat-templates/llama.cpp/Qwen-Qwen2.5-7B-Instruct.jinja": "chatml",
    "chat-templates/llama.cpp/Qwen-Qwen3-0.6B.jinja": "chatml",
    "chat-templates/llama.cpp/meta-llama-Llama-3.1-8B-Instruct.jinja": "llama3",
    "chat-templates/llama.cpp/microsoft-Phi-3.5-mini-instruct.jinja": "phi3",
    "chat-templates/llama.cpp/HuggingFaceTB-SmolLM3-3B.jinja": None,
    "chat-templates/llama.cpp/deepseek-ai-DeepSeek-R1-Distill-Qwen-32B.jinja": None,
    "chat-templates/llama.cpp/google-gemma-2-2b-it.jinja": None,
    "chat-templates/llama.cpp/mistralai-Mistral-Nemo-Instruct-2407.jinja": None,
}

CONVERSATIONS = [
    [["user", "Hello"]],
    [["user", ""]],
    [["system", ""], ["user", "Hi"]],
    [["system", "  Be brief.\n"], ["user", " \t Hi \u00a0\n"]],
    [["user", "1+1?"], ["assistant", "2"]],
    [["user", "1+1?"], ["assistant", " 2 \n"], ["user", "And 2+2?\n\n"]],
    [["system", "S"], ["user", "u1"], ["assistant", "a1"], ["user", "u2"], ["assistant", "a2"], ["user", "u3"]],
    [["user", "q"], ["assistant", "<think>\nlong thought\n</think>\n\nthe answer"], ["user", "next"]],
    [["user", "q"], ["assistant", "<think>\n\nlong thought\n\n</think>\n\n\nthe answer\n"]],
    [["user", "q"], ["assistant", "no thought"], ["assistant", "<think>t</think>x</think>y"], ["assistant", "end"]],
    [["user", "q"], ["assistant", "a <think> b <think> c </think> d </think> e"]],
    [["user", "q"], ["assistant", "text</think>\nrest"], ["user", "<tool_response>\n1\n</tool_response>"], ["assistant", "<think>w</think>done"]],
    [["user", "<tool_response>only</tool_response>"], ["assistant", "<think>v</think>ok"]],
    [["assistant", "I start."], ["user", "you did"]],
    [["user", "u"], ["system", "late system"], ["user", "v"]],
    [["user", "u1"], ["user", "u2"]],
    [["system", "only system"]],
    [["user", "\u4f60\u597d \u2003"], ["assistant", "\u2028\U0001f642\u001f "], ["user", "{{ 1 }} %} ' \" \\n"]],
]


def environment():
    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)

    def raise_exception(message):
        raise TemplateError(message)

    env.globals["raise_exception"] = raise_exception
    return env


def shared_template(data, path):
    if path.endswith(".jinja"):
        return (data / path).read_text()
    return json.loads((data / path / "tokenizer_config.json").read_text())["chat_template"]


def render(env, format, template, conversation, open_turn):
    if format == "llama2" and any(role == "system" for role, _ in conversation[1:]):
        return None
    messages = [{"role": role, "content": content} for role, content in conversation]
    try:
        return env.from_string(template).render(
            messages=messages, add_generation_prompt=open_turn, bos_token="<BOS>", eos_token="<EOS>"
        )
    except TemplateError:
        return None


def main():
    data = Path(sys.argv[1])
    env = environment()
    entries = [{"name": name, "template": t, "format": f} for name, (f, t) in INLINE.items()]
    entries += [{"name": p, "shared": p, "format": f} for p, f in SHARED.items()]
    for entry in entries:
        if entry["format"]:
            template = entry.get("template") or shared_template(data, entry["shared"])
            entry["closed"] = [render(env, entry["format"], template, c, False) for c in CONVERSATIONS]
            entry["open"] = [render(env, entry["format"], template, c, True) for c in CONVERSATIONS]
    json.dump({"conversations": CONVERSATIONS, "templates": entries}, sys.stdout, indent=1)
    print()


main()
