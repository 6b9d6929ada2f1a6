package stripesim_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"tallystick/stripesim"
)

// serveVariable makes the test binary a simulator of its own process: what a
// benchmark of HTTP measures must not share its core with who asks. Its value is
// the directory of the state, or "-" for none.
const serveVariable = "STRIPESIM_BENCH_SERVE"

func TestMain(m *testing.M) {
	if dir := os.Getenv(serveVariable); dir != "" {
		if err := serveAlone(strings.TrimPrefix(dir, "-")); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// serveAlone serves until its input ends. GET /_bench/heap answers the bytes that
// are held after a collection; POST /_bench/load takes meter events by the million
// without the cost of a network.
func serveAlone(dir string) error {
	sim, err := stripesim.NewServer(stripesim.Options{Dir: dir})
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /_bench/heap", func(w http.ResponseWriter, _ *http.Request) { _, _ = fmt.Fprint(w, heldBytes()) })
	mux.HandleFunc("POST /_bench/load", func(w http.ResponseWriter, r *http.Request) { load(sim, w, r) })
	mux.Handle("/", sim)
	server := &http.Server{Handler: mux, ReadHeaderTimeout: time.Minute}
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		_ = server.Close()
	}()
	fmt.Println(listener.Addr())
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return sim.Close()
}

// load takes meter events of customers, spread over the minutes of 35 days.
func load(sim http.Handler, w http.ResponseWriter, r *http.Request) {
	events, _ := strconv.Atoi(r.FormValue("events"))
	customers, now := strings.Split(r.FormValue("customers"), ","), time.Now().Unix()
	for i := range events {
		form := fmt.Sprintf("event_name=calls&identifier=%s-account-meter-bucket-%d&payload[stripe_customer_id]=%s&payload[value]=%d&timestamp=%d",
			r.FormValue("run"), i, customers[i%len(customers)], i%1000, now-int64(i)*1709%(35*86400-600))
		q := httptest.NewRequest(http.MethodPost, "/v1/billing/meter_events", strings.NewReader(form))
		q.Header.Set("Authorization", "Bearer sk_test_1")
		a := httptest.NewRecorder()
		if sim.ServeHTTP(a, q); a.Code != http.StatusOK {
			http.Error(w, a.Body.String(), a.Code)
			return
		}
	}
}

func heldBytes() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// lone is a simulator in a process of its own, on one core.
type lone struct {
	b       *testing.B
	address string
	pid     int
}

func startLone(b *testing.B, dir string) *lone {
	b.Helper()
	cmd := exec.CommandContext(context.WithoutCancel(b.Context()), os.Args[0])
	if dir == "" {
		dir = "-"
	}
	cmd.Env = append(os.Environ(), serveVariable+"="+dir, "GOMAXPROCS=1")
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		b.Fatal(err)
	}
	l := &lone{b: b, address: strings.TrimSpace(line), pid: cmd.Process.Pid}
	b.Cleanup(func() {
		_ = in.Close()
		if err := cmd.Wait(); err != nil {
			b.Error(err)
		}
	})
	return l
}

// cpu is the processor time that the process has used.
func (l *lone) cpu() time.Duration {
	l.b.Helper()
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", l.pid))
	if err != nil {
		l.b.Fatal(err)
	}
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	user, _ := strconv.Atoi(fields[11])
	system, _ := strconv.Atoi(fields[12])
	return time.Duration(user+system) * time.Second / 100 // the kernel counts for us in hundredths
}

func (l *lone) dial() *wire {
	l.b.Helper()
	c, err := net.Dial("tcp", l.address)
	if err != nil {
		l.b.Fatal(err)
	}
	l.b.Cleanup(func() { _ = c.Close() })
	return &wire{conn: c, in: bufio.NewReaderSize(c, 1<<14)}
}

// wire is a connection that stays, spoken to with as little of our own work as
// possible.
type wire struct {
	conn net.Conn
	in   *bufio.Reader
	out  []byte
	form []byte
}

var lengthHeader = []byte("Content-Length: ")

// post sends a form and gives status and body.
func (w *wire) post(path string, form []byte) (status int, body []byte, err error) {
	w.out = append(w.out[:0], "POST "...)
	w.out = append(w.out, path...)
	w.out = append(w.out, " HTTP/1.1\r\nHost: sim\r\nAuthorization: Bearer sk_test_1\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: "...)
	w.out = strconv.AppendInt(w.out, int64(len(form)), 10)
	w.out = append(w.out, "\r\n\r\n"...)
	w.out = append(w.out, form...)
	return w.answer()
}

func (w *wire) get(path string) (status int, body []byte, err error) {
	w.out = append(append(append(w.out[:0], "GET "...), path...), " HTTP/1.1\r\nHost: sim\r\nAuthorization: Bearer sk_test_1\r\n\r\n"...)
	return w.answer()
}

func (w *wire) answer() (status int, body []byte, err error) {
	if _, err = w.conn.Write(w.out); err != nil {
		return 0, nil, err
	}
	length := 0
	for {
		line, err := w.in.ReadSlice('\n')
		if err != nil {
			return 0, nil, err
		}
		if status == 0 {
			if status, err = strconv.Atoi(string(line[9:12])); err != nil {
				return 0, nil, err
			}
		}
		if bytes.HasPrefix(line, lengthHeader) {
			length, _ = strconv.Atoi(string(bytes.TrimSpace(line[len(lengthHeader):])))
		}
		if len(line) == 2 {
			break
		}
	}
	body = make([]byte, length)
	_, err = io.ReadFull(w.in, body)
	return status, body, err
}

// made posts through a wire and gives the id of what was made.
func (l *lone) made(w *wire, path, form string) string {
	l.b.Helper()
	status, body, err := w.post(path, []byte(form))
	if err != nil || status != http.StatusOK {
		l.b.Fatalf("%s %s was answered %d %s %v", path, form, status, body, err)
	}
	_, rest, _ := strings.Cut(string(body), `"id":"`)
	id, _, _ := strings.Cut(rest, `"`)
	return id
}

// benchConnections is how many callers there are at once.
const benchConnections = 8

// meterLoad makes a meter and customers, a number for each connection.
func meterLoad(l *lone, customers int) (meter string, ids []string) {
	l.b.Helper()
	w := l.dial()
	meter = l.made(w, "/v1/billing/meters", "display_name=Calls&event_name=calls&default_aggregation[formula]=sum")
	for range customers {
		ids = append(ids, l.made(w, "/v1/customers", "name=x"))
	}
	return meter, ids
}

// send sends n meter events over all connections, spread over 35 days.
func (l *lone) send(n int, customers []string, run string) {
	l.b.Helper()
	var all sync.WaitGroup
	now := time.Now().Unix()
	for k := range benchConnections {
		w := l.dial()
		mine := customers[k*len(customers)/benchConnections : (k+1)*len(customers)/benchConnections]
		all.Go(func() {
			for i := k; i < n; i += benchConnections {
				f := append(w.form[:0], "event_name=calls&identifier=account-meter-bucket-"...)
				f = strconv.AppendInt(append(f, run...), int64(i), 10)
				f = append(append(f, "&payload[stripe_customer_id]="...), mine[i%len(mine)]...)
				f = strconv.AppendInt(append(f, "&payload[value]="...), int64(i%1000), 10)
				f = strconv.AppendInt(append(f, "&timestamp="...), now-int64(i)*1709%(35*86400-600), 10)
				w.form = f
				status, body, err := w.post("/v1/billing/meter_events", f)
				if err != nil || status != http.StatusOK {
					l.b.Errorf("%s was answered %d %s %v", f, status, body, err)
					return
				}
			}
		})
	}
	all.Wait()
}

func benchmarkMeterEvents(b *testing.B, dir string) {
	b.Helper()
	l := startLone(b, dir)
	_, customers := meterLoad(l, 64)
	l.send(2000, customers, "warm-")
	before := l.cpu()
	b.ResetTimer()
	l.send(b.N, customers, "run-")
	b.StopTimer()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "events/s")
	if used := l.cpu() - before; used > 0 {
		b.ReportMetric(float64(b.N)/used.Seconds(), "events/cpu-s")
	}
}

// BenchmarkMeterEvents is how many meter events a simulator on one core takes.
func BenchmarkMeterEvents(b *testing.B) { benchmarkMeterEvents(b, "") }

// BenchmarkMeterEventsKept is the same with a journal.
func BenchmarkMeterEventsKept(b *testing.B) { benchmarkMeterEvents(b, b.TempDir()) }

// BenchmarkMillionMeterEvents is what a million events of the last day cost to be
// remembered, and how long a page of summaries takes over a million events, of a
// thousand customers and of one.
func BenchmarkMillionMeterEvents(b *testing.B) {
	const events = 1_000_000
	l := startLone(b, "")
	w := l.dial()
	meter, customers := meterLoad(l, 1001)
	before := l.held(w)
	l.load(w, events, customers[1:])
	kept := l.held(w) - before
	b.Run("memory", func(b *testing.B) {
		for range b.N {
			b.ReportMetric(float64(kept)/events, "B/event")
		}
	})
	l.load(w, events, customers[:1])
	day := time.Now().Unix() / 86400 * 86400
	for i, of := range []string{"one", "thousand"} {
		path := fmt.Sprintf("/v1/billing/meters/%s/event_summaries?customer=%s&start_time=%d&end_time=%d", meter, customers[i], day-36*86400, day+86400)
		for _, window := range []string{"", "hour", "day"} {
			more := ""
			if window != "" {
				more = "&limit=100&value_grouping_window=" + window
			}
			b.Run("summary/"+of+"/"+window, func(b *testing.B) { w.getEach(b, path+more, "aggregated_value") })
		}
	}
}

func (l *lone) load(w *wire, events int, customers []string) {
	l.b.Helper()
	form := fmt.Sprintf("events=%d&run=%s&customers=%s", events, customers[0], strings.Join(customers, ","))
	status, body, err := w.post("/_bench/load", []byte(form))
	if err != nil || status != http.StatusOK {
		l.b.Fatalf("answered %d %s %v", status, body, err)
	}
}

// getEach reads a page again and again.
func (w *wire) getEach(b *testing.B, path, want string) {
	b.Helper()
	for range b.N {
		status, body, err := w.get(path)
		if err != nil || status != http.StatusOK || !bytes.Contains(body, []byte(want)) {
			b.Fatalf("answered %d %.300s %v", status, body, err)
		}
	}
}

func (l *lone) held(w *wire) int64 {
	l.b.Helper()
	_, body, err := w.get("/_bench/heap")
	if err != nil {
		l.b.Fatal(err)
	}
	n, err := strconv.ParseInt(string(body), 10, 64)
	if err != nil {
		l.b.Fatal(err)
	}
	return n
}

// BenchmarkListPage is a page of a hundred out of a hundred thousand objects, from
// a place in their middle.
func BenchmarkListPage(b *testing.B) {
	l := startLone(b, "")
	w := l.dial()
	var middle string
	for i := range 100_000 {
		if id := l.made(w, "/v1/customers", "name=x"); i == 50_000 {
			middle = id
		}
	}
	for name, more := range map[string]string{"first": "", "middle": "&starting_after=" + middle, "back": "&ending_before=" + middle} {
		b.Run(name, func(b *testing.B) { w.getEach(b, "/v1/customers?limit=100"+more, `"has_more":true`) })
	}
}

// BenchmarkWebhooks is how many events a simulator makes, signs and delivers to
// one endpoint.
func BenchmarkWebhooks(b *testing.B) {
	l := startLone(b, "")
	w := l.dial()
	var left sync.WaitGroup
	left.Add(b.N)
	receiver := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		left.Done()
	}))
	b.Cleanup(receiver.Close)
	l.made(w, "/v1/webhook_endpoints", "enabled_events[]=customer.created&url="+receiver.URL)
	b.ResetTimer()
	for range b.N {
		l.made(w, "/v1/customers", "name=x")
	}
	left.Wait()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "webhooks/s")
}
