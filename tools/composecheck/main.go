// Command composecheck proves of docker-compose.yml what can be proven without a container engine. `check` compares the
// file with everything that it leans on: the settings, the Dockerfile, the files that it mounts, and what our services
// accept. The other commands say how a service of the file runs outside of a container, for a test that does run it.
//
//	composecheck check ROOT BIN                     all checks; BIN holds our services
//	composecheck services WORLD                     the services that `docker compose up` starts, as JSON
//	composecheck outside WORLD SERVICE              how the service runs, as JSON
//	composecheck health WORLD SERVICE               how its health is asked, as JSON
//	composecheck docker WORLD ARGUMENTS...          stands in for docker in scripts/compose.sh
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
)

func main() {
	if err := run(context.Background(), os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "composecheck:", err)
		os.Exit(1)
	}
}

var errUsage = errors.New("usage: composecheck check ROOT BIN | services WORLD | outside WORLD SERVICE | " +
	"health WORLD SERVICE | docker WORLD ARGUMENTS")

func run(ctx context.Context, args []string) error {
	if len(args) < 2 {
		return errUsage
	}
	if args[0] == "check" && len(args) == 3 {
		return check(ctx, args[1], args[2])
	}
	w, err := readWorld(args[1])
	if err != nil {
		return err
	}
	if args[0] == "docker" {
		return w.docker(ctx, args[2:])
	}
	project, err := w.load(ctx)
	if err != nil {
		return err
	}
	switch {
	case args[0] == "services" && len(args) == 2:
		return printJSON(started(project))
	case args[0] == "outside" && len(args) == 3:
		process, err := w.outside(project, args[2])
		return errors.Join(err, printJSON(process))
	case args[0] == "health" && len(args) == 3:
		process, err := w.health(project, args[2])
		return errors.Join(err, printJSON(process))
	}
	return errUsage
}

func printJSON(value any) error {
	return json.NewEncoder(os.Stdout).Encode(value)
}
