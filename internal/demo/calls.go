package demo

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"

	"tallystick/api"
)

// call sends JSON to the API and reads the answer.
func (s *story) call(ctx context.Context, method, path string, body, answer any) (status int, header http.Header, err error) {
	payload, err := json.Marshal(body)
	if err != nil {
		return 0, nil, err
	}
	r, err := http.NewRequestWithContext(ctx, method, s.u.Info.URL+path, bytes.NewReader(payload))
	if err != nil {
		return 0, nil, err
	}
	r.Header.Set("Authorization", "Bearer "+s.u.Info.APIKey)
	r.Header.Set("Content-Type", "application/json")
	status, header, raw, err := do(r)
	if err != nil || status >= 300 || answer == nil {
		if status >= 300 && err == nil {
			err = fmt.Errorf("%s was answered %d: %s", path, status, raw)
		}
		return status, header, err
	}
	return status, header, json.Unmarshal(raw, answer)
}

func do(r *http.Request) (status int, header http.Header, raw []byte, err error) {
	response, err := http.DefaultClient.Do(r)
	if err != nil {
		return 0, nil, nil, err
	}
	raw, err = io.ReadAll(response.Body)
	_ = response.Body.Close()
	return response.StatusCode, response.Header, raw, err
}

func (s *story) get(path string, answer any) error {
	_, _, err := s.call(s.ctx, http.MethodGet, path, nil, answer)
	return err
}

func (s *story) put(path string, body any) error {
	_, _, err := s.call(s.ctx, http.MethodPut, path, body, nil)
	return err
}

func (s *story) post(path string, body, answer any) error {
	_, _, err := s.call(s.ctx, http.MethodPost, path, body, answer)
	return err
}

// usage records usage. A refusal for lack of credits is an answer, no error.
func (s *story) usage(ctx context.Context, q api.UsageRequest) (status int, replayed bool, err error) {
	status, header, err := s.call(ctx, http.MethodPost, "/v1/usage", q, nil)
	if status == http.StatusPaymentRequired {
		err = nil
	}
	return status, header.Get("Idempotent-Replayed") == "true", err
}

// stripe posts to the simulated Stripe.
func (s *story) stripe(path string, values url.Values) (map[string]any, error) {
	r, err := http.NewRequestWithContext(s.ctx, http.MethodPost, s.u.Info.StripeAPIBase+path, strings.NewReader(values.Encode()))
	if err != nil {
		return nil, err
	}
	r.Header.Set("Authorization", "Bearer "+s.u.Info.StripeAPIKey)
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	status, _, raw, err := do(r)
	if err != nil {
		return nil, err
	}
	if status >= 300 {
		return nil, fmt.Errorf("%s was answered %d: %s", path, status, raw)
	}
	var o map[string]any
	return o, json.Unmarshal(raw, &o)
}

// control sends JSON to the simulator's control plane.
func (s *story) control(path, body string) error {
	r, err := http.NewRequestWithContext(s.ctx, http.MethodPost, s.u.Info.StripeAPIBase+path, strings.NewReader(body))
	if err != nil {
		return err
	}
	status, _, raw, err := do(r)
	if err == nil && status >= 300 {
		err = fmt.Errorf("%s was answered %d: %s", path, status, raw)
	}
	return err
}
