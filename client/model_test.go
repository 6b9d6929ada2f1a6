package client_test

import (
	"bytes"
	"compress/gzip"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
)

// What models answer, in the public formats of their vendors.
const (
	chatWhole = `{"id": "chatcmpl-1", "object": "chat.completion", "model": "small-1", "choices": [{"index": 0, "message": {"role": "assistant",
		"content": "say \"usage\": {\"prompt_tokens\": 9}"}, "finish_reason": "stop"}],
		"usage": {"prompt_tokens": 30, "completion_tokens": 8, "total_tokens": 38, "prompt_tokens_details": {"cached_tokens": 10}}}`
	responsesWhole = `{"id": "resp_1", "object": "response", "status": "completed", "model": "small-1", "output": [],
		"usage": {"input_tokens": 30, "input_tokens_details": {"cached_tokens": 10}, "output_tokens": 8, "output_tokens_details": {"reasoning_tokens": 3}, "total_tokens": 38}}`
	messagesWhole = `{"id": "msg_1", "type": "message", "role": "assistant", "model": "small-1", "content": [{"type": "text", "text": "hello"}], "stop_reason": "end_turn",
		"usage": {"input_tokens": 12, "cache_creation_input_tokens": 8, "cache_read_input_tokens": 10, "output_tokens": 8}}`
	embeddingsWhole = `{"object": "list", "model": "small-1", "data": [{"object": "embedding", "index": 0, "embedding": [0.1, 0.2]}], "usage": {"prompt_tokens": 20, "total_tokens": 20}}`

	chatStream = `data: {"object":"chat.completion.chunk","model":"small-1","choices":[{"index":0,"delta":{"content":"hel"}}],"usage":null}

data: {"object":"chat.completion.chunk","model":"small-1","choices":[{"index":0,"delta":{"content":"lo"}}],"usage":null}

data: {"object":"chat.completion.chunk","model":"small-1","choices":[],"usage":{"prompt_tokens":30,"completion_tokens":8,"prompt_tokens_details":{"cached_tokens":10}}}

data: [DONE]

`
	chatRunning = `data: {"model":"small-1","choices":[{"index":0,"delta":{"content":"hel"}}],"usage":{"prompt_tokens":20,"completion_tokens":3}}

data: {"model":"small-1","choices":[{"index":0,"delta":{"content":"lo"}}],"usage":{"prompt_tokens":20,"completion_tokens":8}}

`
	responsesStream = `event: response.created
data: {"type":"response.created","response":{"id":"resp_1","model":"small-1","usage":null}}

event: response.output_text.delta
data: {"type":"response.output_text.delta","delta":"hello \"usage\""}

event: response.completed
data: {"type":"response.completed","response":{"id":"resp_1","model":"small-1","usage":{"input_tokens":30,"input_tokens_details":{"cached_tokens":10},"output_tokens":8}}}

`
	messagesStream = `event: message_start
data: {"type":"message_start","message":{"id":"msg_1","model":"small-1","usage":{"input_tokens":20,"cache_creation_input_tokens":0,"cache_read_input_tokens":10,"output_tokens":1}}}

event: content_block_delta
data: {"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"hello"}}

: a comment, and a ping
event: ping
data: {"type": "ping"}

event: message_delta
data: {"type":"message_delta","delta":{"stop_reason":"end_turn","stop_sequence":null},"usage":{"output_tokens":8}}

event: message_stop
data: {"type":"message_stop"}

`
	messagesOverloaded = `event: message_start
data: {"type":"message_start","message":{"model":"small-1","usage":{"input_tokens":20,"output_tokens":1}}}

event: error
data: {"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}

`
)

// reply is what the model's server does with the next request.
type reply struct {
	status   int    // 200 by default
	media    string // by default that of the body
	body     string
	piece    int  // bytes per write; 0: all
	cutAfter int  // bytes of the body, then the connection is cut; 0: not cut
	gzipped  bool // whatever was asked for
	encoding string
	picky    bool // the best encoding that was asked for: br, else gzip, else none
	hang     bool // until the caller has gone
}

// model is a server that answers as it is told.
type model struct {
	*httptest.Server
	mu    sync.Mutex
	plan  []reply
	calls int
}

func newModel(t *testing.T) *model {
	t.Helper()
	m := &model{}
	m.Server = httptest.NewServer(m)
	t.Cleanup(m.Close)
	return m
}

func (m *model) next(replies ...reply) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.plan = append(m.plan, replies...)
}

func (m *model) called() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.calls
}

func (m *model) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	_, _ = io.Copy(io.Discard, r.Body)
	m.mu.Lock()
	m.calls++
	var a reply
	if len(m.plan) > 0 {
		a, m.plan = m.plan[0], m.plan[1:]
	}
	m.mu.Unlock()
	if a.hang {
		<-r.Context().Done()
		return
	}
	if accept := r.Header.Get("Accept-Encoding"); a.picky && strings.Contains(accept, "br") {
		a.encoding = "br"
	} else if a.picky {
		a.gzipped = strings.Contains(accept, "gzip")
	}
	w.Header().Set("Content-Type", mediaOf(a))
	body := []byte(a.body)
	if a.gzipped {
		w.Header().Set("Content-Encoding", "gzip")
		body = zipped(body)
	}
	if a.encoding != "" {
		w.Header().Set("Content-Encoding", a.encoding)
	}
	if a.status != 0 {
		w.WriteHeader(a.status)
	}
	whole := len(body)
	if a.cutAfter > 0 {
		body = body[:a.cutAfter]
	}
	for len(body) > 0 {
		n := len(body)
		if a.piece > 0 {
			n = min(n, a.piece)
		}
		_, _ = w.Write(body[:n])
		_ = http.NewResponseController(w).Flush()
		body = body[n:]
	}
	if a.cutAfter > 0 && a.cutAfter < whole {
		panic(http.ErrAbortHandler)
	}
}

func mediaOf(a reply) string {
	switch {
	case a.media != "":
		return a.media
	case strings.HasPrefix(a.body, "{"):
		return "application/json"
	}
	return "text/event-stream; charset=utf-8"
}

func zipped(body []byte) []byte {
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	_, _ = z.Write(body)
	_ = z.Close()
	return b.Bytes()
}
