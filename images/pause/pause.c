/* SPDX-FileCopyrightText: The appliance authors
 * SPDX-License-Identifier: Apache-2.0
 *
 * Holds a pod's namespaces open: waits for ever, reaps orphans when it is PID 1 of a shared PID namespace, ends at
 * once on SIGTERM and SIGINT. `-v` prints the version and ends: kubeadm's upgrade check runs the image that way. */
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#ifndef VERSION
#error "VERSION is given on the compiler's command line"
#endif

static void stop(int number) { _exit(number == SIGTERM || number == SIGINT ? 0 : 1); }

static void reap(int number) {
  (void)number;
  while (waitpid(-1, NULL, WNOHANG) > 0) {
  }
}

int main(int argc, char **argv) {
  for (int i = 1; i < argc; i++)
    if (strcmp(argv[i], "-v") == 0) {
      puts("pause " VERSION);
      return 0;
    }
  struct sigaction ending = {.sa_handler = stop}, reaping = {.sa_handler = reap, .sa_flags = SA_NOCLDSTOP};
  if (sigaction(SIGINT, &ending, NULL) || sigaction(SIGTERM, &ending, NULL) || sigaction(SIGCHLD, &reaping, NULL))
    return 1;
  for (;;)
    pause();
}
