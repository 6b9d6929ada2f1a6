package app_test

import (
	"bufio"
	"fmt"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"tallystick/internal/apptest"
)

// TestG06HeadersAreBoundInSizeAndTime sends headers that are too large, and some
// that never end.
func TestG06HeadersAreBoundInSizeAndTime(t *testing.T) {
	t.Parallel()
	a := apptest.Start(t, apptest.Options{})
	dial := func() net.Conn {
		c, err := net.Dial("tcp", strings.TrimPrefix(a.Info.URL, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		if err := c.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
			t.Fatal(err)
		}
		return c
	}
	slow := dial()
	began := time.Now()
	_, _ = fmt.Fprint(slow, "GET /healthz HTTP/1.1\r\nHost: x\r\nX-A: ")

	large := dial()
	_, _ = fmt.Fprintf(large, "GET /healthz HTTP/1.1\r\nHost: x\r\nX-A: %s\r\n\r\n", strings.Repeat("a", 64<<10))
	response, err := http.ReadResponse(bufio.NewReader(large), nil)
	if err != nil || response.StatusCode != http.StatusRequestHeaderFieldsTooLarge {
		t.Errorf("64 KiB of headers were answered %v, %v", response, err)
	}
	if err == nil {
		_ = response.Body.Close()
	}
	a.Want(http.StatusOK, http.MethodGet, "/healthz", nil, nil) // others are served meanwhile

	_, _ = bufio.NewReader(slow).ReadString(0) // until the server has had enough
	if took := time.Since(began); took > 20*time.Second {
		t.Errorf("headers that never end were waited for %s", took)
	}
}
