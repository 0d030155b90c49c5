// Command web answers every GET on port 80 with a page that names the machine. The lab builds it at run time (see
// package kube) for the availability check, where a rack would run nginx.
package main

import (
	"fmt"
	"log"
	"net/http"
	"os"
	"time"
)

func main() {
	name, err := os.Hostname()
	if err != nil {
		log.Fatal(err)
	}
	server := &http.Server{
		Addr:              ":80",
		ReadHeaderTimeout: 10 * time.Second,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Method != http.MethodGet && r.Method != http.MethodHead {
				http.Error(w, "GET or HEAD", http.StatusMethodNotAllowed)
				return
			}
			w.Header().Set("Content-Type", "text/html; charset=utf-8")
			fmt.Fprintf(w, "<!DOCTYPE html>\n<title>rackstrap lab</title>\n<p>The lab's web server runs in %s.\n", name)
		}),
	}
	log.Fatal(server.ListenAndServe())
}
