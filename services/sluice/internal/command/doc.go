// Package command is the command line of sluice. Standard output gets results only; everything else goes to standard
// error.
package command
