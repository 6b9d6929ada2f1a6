package pgtest

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"testing"
)

// part is the variable that tells a process of Together's what it is there for.
const part = "TALLYSTICK_TEST_PART"

// What a process of Together's says on its output.
const (
	saysReady  = "part: ready"
	saysReport = "part: report "
)

// Together runs the calling test n more times, each in a process of its own, lets
// all of them go on at the same moment, and gives what each reported. Each reads
// spec and its number by Part. It is what a race between processes needs that a
// race between goroutines does not have: memory of its own.
func Together(t testing.TB, n int, spec any) []json.RawMessage {
	t.Helper()
	content, err := json.Marshal(spec)
	if err != nil {
		t.Fatal(err)
	}
	reports, outputs := make([]json.RawMessage, n), make([]bytes.Buffer, n)
	failed := make([]error, n)
	var ready, done sync.WaitGroup
	start := make(chan struct{})
	for i := range n {
		ready.Add(1)
		done.Go(func() {
			failed[i] = runPart(t, strconv.Itoa(i)+" "+string(content), sync.OnceFunc(ready.Done), start, &outputs[i], &reports[i])
		})
	}
	ready.Wait()
	close(start)
	done.Wait()
	for i, err := range failed {
		if err != nil || reports[i] == nil {
			t.Fatalf("process %d of %d: %v\n%s", i+1, n, err, outputs[i].String())
		}
	}
	return reports
}

func runPart(t testing.TB, content string, ready func(), start <-chan struct{}, output *bytes.Buffer, report *json.RawMessage) error {
	t.Helper()
	defer ready()
	binary, err := os.Executable()
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(t.Context(), binary, "-test.run=^"+t.Name()+"$", "-test.v", "-test.timeout=0")
	cmd.Env = append(os.Environ(), part+"="+content)
	in, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	cmd.Stderr = cmd.Stdout
	if err := cmd.Start(); err != nil {
		return err
	}
	for lines := bufio.NewReader(out); ; {
		line, err := lines.ReadString('\n')
		if line = strings.TrimSuffix(line, "\n"); line == saysReady {
			ready()
			<-start
			_, _ = io.WriteString(in, "go\n") // a process that is gone shows when it is waited for
		} else if text, ok := strings.CutPrefix(line, saysReport); ok {
			*report = json.RawMessage(text)
		} else {
			fmt.Fprintln(output, line)
		}
		if err != nil {
			return cmd.Wait()
		}
	}
}

// Part tells whether this process is one of Together's, and if so reads what it
// is to do and which of them it is.
func Part(t testing.TB, spec any) (number int, is bool) {
	t.Helper()
	content := os.Getenv(part)
	if content == "" {
		return 0, false
	}
	first, rest, _ := strings.Cut(content, " ")
	number, err := strconv.Atoi(first)
	if err == nil {
		err = json.Unmarshal([]byte(rest), spec)
	}
	if err != nil {
		t.Fatal(err)
	}
	return number, true
}

// Ready waits until all processes of Together's are.
func Ready() {
	fmt.Println(saysReady)
	_, _ = bufio.NewReader(os.Stdin).ReadString('\n')
}

// Report hands a result to the process that called Together.
func Report(t testing.TB, result any) {
	t.Helper()
	content, err := json.Marshal(result)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Println(saysReport + string(content))
}
