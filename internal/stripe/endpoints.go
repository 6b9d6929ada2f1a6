package stripe

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"time"
)

// Endpoint is where Stripe sends webhooks to.
type Endpoint struct {
	ID            string
	URL           string
	APIVersion    string // "" for the account's default version; fixed at creation
	EnabledEvents []string
	Enabled       bool
	Secret        string // given once, by CreateEndpoint
	Livemode      bool
	CreatedAt     time.Time
}

type wireEndpoint struct {
	ID            string   `json:"id"`
	URL           string   `json:"url"`
	APIVersion    string   `json:"api_version"`
	EnabledEvents []string `json:"enabled_events"`
	Status        string   `json:"status"`
	Secret        string   `json:"secret"`
	Livemode      bool     `json:"livemode"`
	Created       int64    `json:"created"`
}

func (w wireEndpoint) endpoint() Endpoint {
	return Endpoint{
		ID: w.ID, URL: w.URL, APIVersion: w.APIVersion, EnabledEvents: w.EnabledEvents, Enabled: w.Status == "enabled",
		Secret: w.Secret, Livemode: w.Livemode, CreatedAt: unix(w.Created),
	}
}

// Endpoints gives all webhook endpoints of the account, in the key's mode.
func (c *Client) Endpoints(ctx context.Context) (endpoints []Endpoint, err error) {
	err = c.list(ctx, "/v1/webhook_endpoints", nil, func(raw json.RawMessage) error {
		var w wireEndpoint
		if err := json.Unmarshal(raw, &w); err != nil {
			return fmt.Errorf("read a webhook endpoint: %w", err)
		}
		endpoints = append(endpoints, w.endpoint())
		return nil
	})
	return endpoints, err
}

// CreateEndpoint makes a webhook endpoint with our API version. The answer alone
// carries its secret. The key makes a repeat of the same call harmless.
func (c *Client) CreateEndpoint(ctx context.Context, to string, events []string, key string) (Endpoint, error) {
	values := enabled(events)
	values.Set("url", to)
	values.Set("api_version", APIVersion)
	return c.putEndpoint(ctx, "/v1/webhook_endpoints", values, key)
}

// UpdateEndpoint enables an endpoint and makes it listen to exactly these types.
func (c *Client) UpdateEndpoint(ctx context.Context, id string, events []string, key string) (Endpoint, error) {
	values := enabled(events)
	values.Set("disabled", "false")
	return c.putEndpoint(ctx, "/v1/webhook_endpoints/"+url.PathEscape(id), values, key)
}

func enabled(events []string) url.Values {
	values := url.Values{}
	for i, kind := range events {
		values.Set("enabled_events["+strconv.Itoa(i)+"]", kind)
	}
	return values
}

func (c *Client) putEndpoint(ctx context.Context, path string, values url.Values, key string) (Endpoint, error) {
	var answer one
	if err := c.call(ctx, http.MethodPost, path, values, key, &answer); err != nil {
		return Endpoint{}, fmt.Errorf("stripe %s: %w", path, err)
	}
	if answer.LastResponse == nil {
		return Endpoint{}, fmt.Errorf("stripe %s: the answer is empty", path)
	}
	var w wireEndpoint
	if err := json.Unmarshal(answer.LastResponse.RawJSON, &w); err != nil {
		return Endpoint{}, fmt.Errorf("stripe %s: %w", path, err)
	}
	return w.endpoint(), nil
}
