package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"tallystick/api"
)

// callTime bounds one call to a server; a run of all checks is the longest.
const callTime = 10 * time.Minute

// client talks to a running server.
type client struct {
	url, key string
	http     *http.Client
}

var errNoServer = errors.New("no server is known")

// client finds the server: named by flag or environment, else that of up.
func (p *program) client() (*client, error) {
	c := &client{url: p.url, key: p.apiKey, http: &http.Client{Timeout: callTime}}
	if c.url != "" {
		if c.key == "" {
			return nil, usageError("--url needs an API key: set --api-key or TALLYSTICK_API_KEY")
		}
		return c, nil
	}
	i, err := p.info()
	if err != nil || i.URL == "" {
		return nil, &exitError{code: exitUsage, err: fmt.Errorf("%w: start one with `tallystick up`, or set TALLYSTICK_URL and TALLYSTICK_API_KEY", errNoServer)}
	}
	c.url, c.key = i.URL, i.APIKey
	return c, nil
}

// call sends body as JSON and reads the answer into answer. It gives the raw
// answer, too, for --output json.
func (c *client) call(ctx context.Context, method, path string, body, answer any) ([]byte, error) {
	var payload io.Reader
	if body != nil {
		encoded, err := json.Marshal(body)
		if err != nil {
			return nil, err
		}
		payload = bytes.NewReader(encoded)
	}
	r, err := http.NewRequestWithContext(ctx, method, strings.TrimSuffix(c.url, "/")+path, payload)
	if err != nil {
		return nil, usageError("the server's address cannot be used: %w", err)
	}
	r.Header.Set("Authorization", "Bearer "+c.key)
	r.Header.Set("Content-Type", "application/json")
	response, err := c.http.Do(r)
	if err != nil {
		return nil, fmt.Errorf("%s does not answer; is it running? %w", c.url, err)
	}
	defer func() { _ = response.Body.Close() }()
	raw, err := io.ReadAll(response.Body)
	if err != nil {
		return nil, fmt.Errorf("read the answer of %s: %w", c.url, err)
	}
	if response.StatusCode >= 300 {
		return raw, problem(response.StatusCode, raw)
	}
	if answer == nil {
		return raw, nil
	}
	return raw, json.Unmarshal(raw, answer)
}

// problem makes an error of a problem document.
func problem(status int, raw []byte) error {
	var d api.Problem
	code := exitUsage
	switch status {
	case http.StatusPaymentRequired, http.StatusInternalServerError:
		code = exitFindings
	case http.StatusServiceUnavailable, http.StatusTooManyRequests:
		code = exitUnreachable
	}
	if json.Unmarshal(raw, &d) != nil || d.Code == "" {
		return &exitError{code: code, err: fmt.Errorf("the server answered %d", status)}
	}
	text := d.Detail
	for _, f := range d.Errors {
		text += fmt.Sprintf("\n  %s %s", f.Pointer, f.Message)
	}
	return &exitError{code: code, err: fmt.Errorf("%s (%s, request %s)", text, d.Code, d.RequestID)}
}
