// Package command is the command line of sluice: it reads flags, wires the client to the terminal, and turns results
// into tables and exit codes. Standard output gets results only; everything else goes to standard error.
package command
