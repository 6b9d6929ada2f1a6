package client

import (
	"bytes"
	"encoding/json"
	"strings"
)

// Tokens is what a model's answer says that it has used. The four do not overlap.
type Tokens struct {
	Model       string
	Input       int64 // neither read from a cache nor written to one
	CachedInput int64 // read from a cache
	CacheWrite  int64 // written to one
	Output      int64 // reasoning included
}

// usageObject is the usage of OpenAI's chat completions, responses and embeddings, and
// of Anthropic's messages. Where the names agree the meaning does not: OpenAI's input
// includes what was cached, Anthropic's does not.
type usageObject struct {
	PromptTokens     *int64        `json:"prompt_tokens"`
	CompletionTokens *int64        `json:"completion_tokens"`
	PromptDetails    *inputDetails `json:"prompt_tokens_details"`
	InputTokens      *int64        `json:"input_tokens"`
	OutputTokens     *int64        `json:"output_tokens"`
	InputDetails     *inputDetails `json:"input_tokens_details"`
	CacheRead        *int64        `json:"cache_read_input_tokens"`
	CacheCreation    *int64        `json:"cache_creation_input_tokens"`
}

type inputDetails struct {
	Cached int64 `json:"cached_tokens"`
}

// envelope is what of an answer, or of one event of a stream, is about usage.
type envelope struct {
	Type     string          `json:"type"`
	Model    string          `json:"model"`
	Usage    *usageObject    `json:"usage"`
	Message  *envelope       `json:"message"`  // of Anthropic's message_start
	Response *envelope       `json:"response"` // of the responses API's events
	Delta    json.RawMessage `json:"delta"`    // an object, or the text itself
	Choices  []struct{}      `json:"choices"`  // of chat completions; the chunk with the final usage has none
}

// tally adds up what an answer says.
type tally struct {
	tokens   Tokens
	input    bool // the input is known
	seen     bool // a running total of the output is known
	output   bool // the output is known, and final
	streamed bool
	failed   bool // the stream itself says that it broke
}

// complete tells whether the usage is known.
func (t *tally) complete() bool { return t.input && t.output && !t.failed }

// event takes one event of a stream, or a whole answer.
func (t *tally) event(data []byte) {
	var e envelope
	if json.Unmarshal(data, &e) != nil {
		return // not ours to judge; without a usage the end will say so
	}
	switch e.Type {
	case "message_start":
		if e.Message != nil {
			t.model(e.Message.Model)
			t.take(e.Message.Usage, false) // its output is that of the first token
		}
	case "message_delta":
		var delta struct {
			StopReason *string `json:"stop_reason"`
		}
		_ = json.Unmarshal(e.Delta, &delta)
		t.take(e.Usage, delta.StopReason != nil)
	case "error":
		t.failed = true
	case "response.completed", "response.incomplete", "response.failed":
		if e.Response != nil {
			t.model(e.Response.Model)
			t.take(e.Response.Usage, true)
		}
	default:
		t.model(e.Model)
		t.take(e.Usage, !t.streamed || len(e.Choices) == 0)
	}
}

func (t *tally) model(name string) {
	if name != "" {
		t.tokens.Model = name
	}
}

// take reads a usage. What it says replaces what was said before: usage in streams is
// cumulative.
func (t *tally) take(u *usageObject, final bool) {
	if u == nil {
		return
	}
	switch {
	case u.PromptTokens != nil:
		t.tokens.CachedInput = u.PromptDetails.cached()
		t.tokens.Input, t.input = max(*u.PromptTokens-t.tokens.CachedInput, 0), true
		if u.CompletionTokens != nil {
			t.tokens.Output = *u.CompletionTokens
		}
		t.seen, t.output = true, t.output || final // embeddings have no completion
		return
	case u.InputTokens != nil && u.InputDetails != nil:
		t.tokens.CachedInput = u.InputDetails.cached()
		t.tokens.Input, t.input = max(*u.InputTokens-t.tokens.CachedInput, 0), true
	case u.InputTokens != nil:
		t.tokens.Input, t.input = *u.InputTokens, true
	}
	if u.CacheRead != nil {
		t.tokens.CachedInput = *u.CacheRead
	}
	if u.CacheCreation != nil {
		t.tokens.CacheWrite = *u.CacheCreation
	}
	if u.OutputTokens != nil {
		t.tokens.Output, t.output = *u.OutputTokens, t.output || final
	}
}

func (d *inputDetails) cached() int64 {
	if d == nil {
		return 0
	}
	return d.Cached
}

// Bounds of what is kept of an answer to read its usage.
const (
	wholeBytesMax = 16 << 20 // an answer that is no stream
	eventBytesMax = 1 << 20  // one event of a stream; the rest of a longer one is not read
)

// reader takes an answer's bytes as they come and finds the usage in them.
type reader interface {
	Write(p []byte) (int, error)
	end() // no more will come
}

// wholeReader keeps an answer that is one JSON object.
type wholeReader struct {
	t       *tally
	content bytes.Buffer
	over    bool
}

func (w *wholeReader) Write(p []byte) (int, error) {
	if w.over = w.over || w.content.Len()+len(p) > wholeBytesMax; !w.over {
		w.content.Write(p)
	}
	return len(p), nil
}

func (w *wholeReader) end() {
	if !w.over {
		w.t.event(w.content.Bytes())
	}
	w.content = bytes.Buffer{}
}

// eventReader reads server-sent events, however they are cut into pieces, and keeps
// one line and one event at most.
type eventReader struct {
	t       *tally
	line    []byte
	data    []byte
	inLine  bool // the line has something in it
	over    bool // the event is longer than what is kept
	afterCR bool // a line feed that comes now ends no second line
}

func (r *eventReader) Write(p []byte) (int, error) {
	for rest := p; len(rest) > 0; {
		if r.afterCR && rest[0] == '\n' {
			rest = rest[1:]
		}
		r.afterCR = false
		i := bytes.IndexAny(rest, "\r\n")
		if i < 0 {
			r.keep(rest)
			break
		}
		r.keep(rest[:i])
		r.afterCR = rest[i] == '\r'
		rest = rest[i+1:]
		r.endLine()
	}
	return len(p), nil
}

func (r *eventReader) keep(piece []byte) {
	r.inLine = r.inLine || len(piece) > 0
	if r.over = r.over || len(r.line)+len(r.data)+len(piece) > eventBytesMax; !r.over {
		r.line = append(r.line, piece...)
	}
}

func (r *eventReader) endLine() {
	if !r.inLine { // a blank line ends the event
		r.dispatch()
		return
	}
	if data, found := bytes.CutPrefix(r.line, []byte("data:")); found && !r.over {
		r.data = append(append(r.data, bytes.TrimPrefix(data, []byte(" "))...), '\n')
	}
	r.line, r.inLine = r.line[:0], false
}

func (r *eventReader) dispatch() {
	data := bytes.TrimSuffix(r.data, []byte("\n"))
	switch {
	case r.over: // the events with usage are short
	case bytes.Equal(data, []byte("[DONE]")):
		r.t.output = r.t.output || r.t.seen
	case bytes.Contains(data, []byte(`"usage"`)), bytes.Contains(data, []byte(`"error"`)):
		r.t.event(data)
	}
	r.data, r.over = r.data[:0], false
}

// end takes a last event that no blank line follows.
func (r *eventReader) end() {
	if r.inLine {
		r.endLine()
	}
	r.dispatch()
}

// newReader chooses by the answer's media type.
func newReader(mediaType string, t *tally) reader {
	if strings.HasPrefix(strings.ToLower(mediaType), "text/event-stream") {
		t.streamed = true
		return &eventReader{t: t}
	}
	return &wholeReader{t: t}
}
