package meter_test

import (
	"context"
	"fmt"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// TestC12AHotAccountIsSharedFairly lets 40 clients of two processes have one
// account all to themselves for a while: nothing is lost, and nobody starves.
func TestC12AHotAccountIsSharedFairly(t *testing.T) {
	t.Parallel()
	c := opened(t, 1_000_000)
	tills := []*till{c, c.beside()}
	counts := make([]int, 40)
	stop := make(chan struct{})
	var slowest atomic.Int64
	var wg sync.WaitGroup
	for client := range counts {
		wg.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				began := time.Now()
				a := tills[client%2].use(fmt.Sprintf("usage-%02d-%06d", client, i), 1)
				if a.status == 201 {
					counts[client]++
				} else if a.status != 429 {
					t.Errorf("client %d was answered %d: %s", client, a.status, a.body)
				}
				for took := time.Since(began).Nanoseconds(); took > slowest.Load(); {
					slowest.Store(took)
				}
			}
		})
	}
	time.Sleep(2 * time.Second)
	close(stop)
	wg.Wait()
	total, least := 0, counts[0]
	for _, n := range counts {
		total, least = total+n, min(least, n)
	}
	t.Logf("%d usages, the least of a client's %d of %d on average, the slowest took %s", total, least, total/len(counts), time.Duration(slowest.Load()).Round(time.Millisecond))
	if least*4 < total/len(counts) || total == 0 {
		t.Errorf("clients got %v", counts)
	}
	if n := c.count("SELECT count(*) FROM usage"); n != total {
		t.Errorf("%d usages were recorded, %d acknowledged", n, total)
	}
	c.wantBooks(fmt.Sprintf("%d/0/0", 1_000_000-total))
	c.verified()
}

// TestC12AFloodIsRefusedBeforeMemoryGrows offers many times what a lane takes to a
// database that stands still: beyond the bound they are refused at once.
func TestC12AFloodIsRefusedBeforeMemoryGrows(t *testing.T) { //nolint:paralleltest // the memory of others would count
	c := opened(t, 10_000)
	first, release := c.stopped()
	batch := func(n, size int) string {
		items := make([]string, size)
		for i := range items {
			items[i] = fmt.Sprintf(`{"id": "usage-%04d-%04d", "account": "acme", "meter": "call", "quantity": 1, "dimensions": {"a": %q}}`, n, i, strings.Repeat("x", 250))
		}
		return `{"usage": [` + strings.Join(items, ",") + `]}`
	}
	var wg sync.WaitGroup
	for n, size := range []int{1000, 1000, 48} {
		wg.Go(func() { c.want(200, http.MethodPost, "/v1/usage/batch", batch(n, size)) })
	}
	c.await("the lane to be full", func() bool { return c.Depth() == 2048 })
	heap := func() uint64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before, goroutines := heap(), runtime.NumGoroutine()
	var refused atomic.Int64
	var flood sync.WaitGroup
	for sender := range 8 {
		flood.Go(func() {
			for i := range 3 {
				a := c.call(http.MethodPost, "/v1/usage/batch", batch(100+sender*100+i, 1000))
				refused.Add(int64(strings.Count(a.body, `"code":"overloaded"`)))
			}
		})
	}
	flood.Wait()
	if refused.Load() != 24_000 {
		t.Errorf("%d of 24,000 usages beyond the bound were refused", refused.Load())
	}
	if grown := int64(heap()) - int64(before); grown > 12<<20 {
		t.Errorf("the flood left %d MiB behind", grown>>20)
	}
	if n := runtime.NumGoroutine(); n > goroutines+40 {
		t.Errorf("%d goroutines, %d before the flood", n, goroutines)
	}
	release()
	wg.Wait()
	if a := <-first; a.status != 201 {
		t.Errorf("answered %d: %s", a.status, a.body)
	}
	if n := c.count("SELECT count(*) FROM usage"); n != 2049 {
		t.Errorf("%d usages were recorded, want the 2049 that fitted in", n)
	}
	c.verified()
}

// TestA05A06ACallerThatHangsUpFindsItsAnswer hangs up while its usage waits, and
// again with half of the answer read: the same id is answered as if nothing were.
func TestA05A06ACallerThatHangsUpFindsItsAnswer(t *testing.T) {
	t.Parallel()
	c := opened(t, 10)
	first, release := c.stopped()
	ctx, hangUp := context.WithCancel(t.Context())
	gone := make(chan error, 1)
	go func() {
		r, err := http.NewRequestWithContext(ctx, http.MethodPost, c.url+"/v1/usage", strings.NewReader(usageOf("usage-0001", 3)))
		if err != nil {
			gone <- err
			return
		}
		r.Header.Set("Authorization", "Bearer "+c.key)
		response, err := client.Do(r)
		if err == nil {
			_ = response.Body.Close()
			err = fmt.Errorf("answered %d", response.StatusCode)
		} else {
			err = nil
		}
		gone <- err
	}()
	c.await("the usage to wait", func() bool { return c.Depth() == 1 })
	hangUp()
	if err := <-gone; err != nil {
		t.Error(err)
	}
	release()
	<-first
	c.await("the usage of who hung up", func() bool { return c.count("SELECT count(*) FROM usage") == 2 })
	whole := c.use("usage-0001", 3)
	if whole.status != 201 || !whole.replayed {
		t.Errorf("sent again it was answered %d (replayed %v): %s", whole.status, whole.replayed, whole.body)
	}

	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, c.url+"/v1/usage", strings.NewReader(usageOf("usage-0002", 3)))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer "+c.key)
	response, err := client.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	half := make([]byte, 40)
	if _, err := response.Body.Read(half); err != nil {
		t.Fatal(err)
	}
	_ = response.Body.Close()
	if again := c.use("usage-0002", 3); again.status != 201 || !again.replayed || !strings.HasPrefix(again.body, string(half)) {
		t.Errorf("sent again it was answered %d (replayed %v): %s, half before %s", again.status, again.replayed, again.body, half)
	}
	c.wantBooks("3/0/0")
	c.verified()
}
