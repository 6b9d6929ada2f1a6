package bench

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// child is a process under load. It ends when its standard input does, and so
// with us, however we end.
type child struct {
	url   string
	key   string
	cmd   *exec.Cmd
	stdin io.Closer
}

// ready is the line that a child prints when it serves.
type ready struct {
	URL string `json:"url"`
	Key string `json:"key"`
}

// startChild starts this program again and waits until it serves. What it logs
// goes to a file, as in production.
func startChild(ctx context.Context, o Options, log, role, dsn, profile string) (*child, error) {
	cmd := exec.CommandContext(ctx, o.Program, "bench", role, "--profile", profile) //nolint:gosec // this program
	cmd.Env = append(slices.Clone(o.Environ), "DATABASE_URL="+dsn)
	file, err := os.Create(filepath.Clean(log))
	if err != nil {
		return nil, err
	}
	defer func() { _ = file.Close() }()
	cmd.Stderr = file
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start the %s: %w", role, err)
	}
	c := &child{cmd: cmd, stdin: stdin}
	line, err := bufio.NewReader(stdout).ReadBytes('\n')
	var r ready
	if err == nil {
		err = json.Unmarshal(line, &r)
	}
	if err != nil {
		said, _ := os.ReadFile(filepath.Clean(log))
		return nil, errors.Join(fmt.Errorf("the %s did not start: %w: %s", role, err, said), c.stop())
	}
	c.url, c.key = r.URL, r.Key
	return c, nil
}

func (c *child) stop() error {
	if err := c.stdin.Close(); err != nil {
		return err
	}
	return c.cmd.Wait()
}

// cost is what a process has used up to now.
type cost struct {
	rss     int64 // at its highest since forgetPeak
	cpu     time.Duration
	mallocs int64
}

func (c *child) cost(ctx context.Context) (cost, error) {
	pid := c.cmd.Process.Pid
	k := cost{cpu: cpuOf(pid)}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return k, fmt.Errorf("read what the server uses: %w", err)
	}
	for line := range strings.Lines(string(status)) {
		if text, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			kilobytes, _ := strconv.ParseInt(strings.Fields(text)[0], 10, 64) // the kernel writes digits
			k.rss = kilobytes << 10
		}
	}
	k.mallocs, err = c.mallocs(ctx)
	return k, err
}

// forgetPeak makes the kernel count the highest memory anew; where it will not,
// the highest since the start stands.
func (c *child) forgetPeak() {
	_ = os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", c.cmd.Process.Pid), []byte("5"), 0)
}

// mallocs reads how often the process has allocated, off its metrics.
func (c *child) mallocs(ctx context.Context) (int64, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, c.url+"/metrics", http.NoBody)
	if err != nil {
		return 0, err
	}
	response, err := http.DefaultClient.Do(r)
	if err != nil {
		return 0, err
	}
	defer func() { _ = response.Body.Close() }()
	scanner := bufio.NewScanner(response.Body)
	for scanner.Scan() {
		if text, ok := strings.CutPrefix(scanner.Text(), "go_memstats_mallocs_total "); ok {
			n, err := strconv.ParseFloat(text, 64) // a counter of Prometheus, not money
			return int64(n), err
		}
	}
	return 0, errors.Join(errors.New("the metrics do not count allocations"), scanner.Err())
}

// tick is the unit of the kernel's CPU times, one hundredth of a second on Linux.
const tick = 10 * time.Millisecond

// cpuOf is the CPU time of a process.
func cpuOf(pid int) time.Duration {
	stat := fieldsOf(pid)
	if len(stat) < 13 {
		return 0
	}
	user, _ := strconv.ParseInt(stat[11], 10, 64) // the kernel writes digits
	system, _ := strconv.ParseInt(stat[12], 10, 64)
	return time.Duration(user+system) * tick
}

// cpuOfTree is the CPU time of a process and of its children, those that have
// ended included.
func cpuOfTree(pid int) time.Duration {
	total := cpuOf(pid)
	if stat := fieldsOf(pid); len(stat) > 14 {
		user, _ := strconv.ParseInt(stat[13], 10, 64) // the kernel writes digits
		system, _ := strconv.ParseInt(stat[14], 10, 64)
		total += time.Duration(user+system) * tick
	}
	entries, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, entry := range entries {
		n, err := strconv.Atoi(filepath.Base(filepath.Dir(entry)))
		if err != nil {
			continue
		}
		if stat := fieldsOf(n); len(stat) > 1 && stat[1] == strconv.Itoa(pid) {
			total += cpuOf(n)
		}
	}
	return total
}

// fieldsOf gives what the kernel tells of a process, from its state on: the name
// before that may hold blanks.
func fieldsOf(pid int) []string {
	content, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return nil
	}
	return strings.Fields(string(content[strings.LastIndexByte(string(content), ')')+1:]))
}
